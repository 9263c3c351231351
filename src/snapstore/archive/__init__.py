"""The archive: snapshots in an object store, so that a cluster outlives the loss of all its machines.

`Archive("s3://BUCKET/PREFIX").push(stored)` puts one there, `.pull(index, directory)` brings it back.
Needs obstore: pip install 'snapstore[s3]'.

Plan: names and what a manifest may say are layout.py's, objects by name bucket.py's, and so are all
words about what an object store refuses. upload.py and download.py move the bytes, retention.py removes
them, errand.py lends a thread to what waits for answers, and archive.py is the face of it all.
"""

from snapstore.archive.archive import Archive, ArchivedSnapshot, PushedSnapshot

__all__ = ["Archive", "ArchivedSnapshot", "PushedSnapshot"]
