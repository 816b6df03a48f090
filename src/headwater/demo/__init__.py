"""The demo: an agent with tools on a real language model of this machine, and the page that talks to it.

`agent` holds the agent and its tools, `local_model` runs the model, `page` is what the browser gets.
Nothing in the library imports this package, and importing it starts nothing.
"""
