"""The studio: a page for making music with a model. Only `page` needs the extra `audiovq[studio]`."""
