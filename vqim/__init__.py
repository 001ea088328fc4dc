"""vqim: vector-quantised image modelling on Cloud TPUs, GPUs and laptops."""
