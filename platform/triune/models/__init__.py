from triune import lazy

__getattr__ = lazy.attach(
    __name__,
    {
        "Decoder": "triune.models.decoder",
        "Encoder": "triune.models.encoder",
        "EncoderDecoder": "triune.models.encoder_decoder",
        "build": "triune.models.factory",
    },
)
