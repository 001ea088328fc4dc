"""How good a tokenizer, a prior and their images are: metrics, baselines, and the report that shows them."""
