from triune.attention.dispatch import attend as attend
