from triune import lazy

__getattr__ = lazy.attach(
    __name__,
    {
        "SequenceLayout": "triune.attention.layout",
        "attend": "triune.attention.dispatch",
        "block_local": "triune.attention.sparse",
        "causal": "triune.attention.patterns",
        "dilated": "triune.attention.sparse",
        "fixed": "triune.attention.sparse",
        "full": "triune.attention.patterns",
        "global_tokens": "triune.attention.sparse",
        "parse": "triune.attention.expression",
        "per_head": "triune.attention.sparse",
        "prefix": "triune.attention.patterns",
        "random_blocks": "triune.attention.sparse",
        "sinks": "triune.attention.sparse",
        "strided": "triune.attention.sparse",
        "window": "triune.attention.patterns",
    },
)
