"""The demo: a server and several workers that train a perceptron on handwritten digits, watched live.

`session.run_demo` is what `stepwell demo` does: it starts the others, watches, and draws the picture.
`worker.run_worker` is what `stepwell demo-worker` does, on its own in a container too. `options` holds what both can be
told, and imports nothing heavy; all the rest needs scikit-learn and Matplotlib, the extra `demo`.
"""
