"""CamemBERT (Martin et al. 2020): RoBERTa under another name."""

from triune.exchange.architectures.roberta import relative

ARCHITECTURE = relative("camembert", "Camembert", vocabulary=30522)
