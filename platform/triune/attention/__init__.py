from triune import lazy

__getattr__ = lazy.attach(
    __name__,
    {
        "SequenceLayout": "triune.attention.layout",
        "attend": "triune.attention.dispatch",
        "causal": "triune.attention.patterns",
        "full": "triune.attention.patterns",
        "parse": "triune.attention.patterns",
        "prefix": "triune.attention.patterns",
        "window": "triune.attention.patterns",
    },
)
