"""A client of the OCI distribution specification: blobs that go on where they broke off, manifests, tags, referrers.

Not oras-py (0.2.43, the only such library on PyPI): it reads whole layers into memory, writes a manifest anew from its
parsed form, which changes the digest, and neither resumes nor repeats an upload.
"""
