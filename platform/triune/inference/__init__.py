from triune import lazy

__getattr__ = lazy.attach(
    __name__,
    {
        "GenerationConfig": "triune.inference.config",
        "beam_search": "triune.inference.beam",
        "fill": "triune.inference.filling",
        "generate": "triune.inference.generation",
        "stream": "triune.inference.generation",
    },
)
