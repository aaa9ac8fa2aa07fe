"""A model as a web page: a static folder that makes music in the browser."""
