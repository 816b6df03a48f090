"""`/console`: what this server is doing, to look at in a browser.

    App(streams, runs, console=True)

`resource` answers for the paths, `figures` is the one place where figures are taken, `history` keeps them, `feed`
streams them, `looking` shows what a stream holds and who reads it. `page` is what the browser loads, as it stands.
"""
