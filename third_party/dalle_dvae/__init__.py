"""The names in OpenAI's files of DALL-E's discrete VAE, for a user who has them. See METADATA and README.md."""
from .weights import FILES, IGNORED, original_names, to_array

__all__ = ["FILES", "IGNORED", "original_names", "to_array"]
