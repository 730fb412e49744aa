from triune import lazy

__getattr__ = lazy.attach(
    __name__,
    {
        "fill": "triune.inference.filling",
        "generate": "triune.inference.generation",
    },
)
