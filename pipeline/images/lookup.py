"""What a registry has for a tag, and writing it down."""

from pipeline.errors import RegistryError
from pipeline.images import manifest
from pipeline.registry.address import Address
from pipeline.registry.client import Repository
from pipeline.registry.session import Session


def digest(reference: str) -> str:
    """Return the digest that a registry has for HOST/REPOSITORY:TAG. RegistryError when it has none or does not answer.

    It is the index's where there is one: builders then choose their platform from it.
    """
    repository, _, tag = reference.rpartition(":")
    with Session(Address.parse(repository)) as session:
        found = Repository(session).manifest(tag)
    if found is None:
        raise RegistryError(f"{reference}: the registry has no such tag")
    return found.descriptor.digest


def pin() -> tuple[dict[str, str], dict[str, str]]:
    """Look up every tag of images.toml and write what was found; return digests and reasons, by image.

    One that cannot be looked up keeps the digest that it has, and is reported.
    """
    images = manifest.load()
    found, failed = {}, {}
    for section, wanted in images:
        if not isinstance(wanted, manifest.Pin):
            continue
        try:
            found[wanted.image] = digest(wanted.image)
        except RegistryError as error:
            failed[wanted.image] = str(error)
        else:
            manifest.write_digest(section, found[wanted.image])
    return found, failed
