"""XLM-RoBERTa (Conneau et al. 2020): RoBERTa under another name."""

from triune.exchange.architectures.roberta import relative

ARCHITECTURE = relative("xlm-roberta", "XLMRoberta", vocabulary=30522)
