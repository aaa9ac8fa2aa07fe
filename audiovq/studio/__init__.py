"""The studio: a page for making music with a model. Only `page` needs Gradio, the extra `audiovq[studio]`."""
