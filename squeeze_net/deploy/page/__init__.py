"""The classifier in a browser: index.html, squeezenet.wasm and what builds it."""
