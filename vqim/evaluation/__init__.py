"""How good a tokenizer, a prior and their images are: figures of merit, baselines, and the report that shows them."""
