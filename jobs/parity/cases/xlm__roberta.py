"""A tiny XLM-RoBERTa."""

from triune.exchange.proof import Case

SHAPE = {
    "vocab_size": 83,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 43,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
CASES = [Case(name="3 heads of 12, tied", model="XLMRobertaForMaskedLM", settings=SHAPE)]
