from triune import lazy

__getattr__ = lazy.attach(
    __name__,
    {
        "from_huggingface": "triune.exchange.importing",
        "to_huggingface": "triune.exchange.exporting",
    },
)
