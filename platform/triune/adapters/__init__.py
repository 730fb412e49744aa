from triune import lazy

__getattr__ = lazy.attach(
    __name__,
    {
        "LoraAdapter": "triune.adapters.config",
        "TuningConfig": "triune.adapters.config",
        "attach": "triune.adapters.placement",
        "detach": "triune.adapters.placement",
        "merge": "triune.adapters.placement",
        "merged_copy": "triune.adapters.placement",
        "prepare": "triune.adapters.tuning",
    },
)
