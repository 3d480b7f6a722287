"""Training: on-policy distillation, and the SFT and GRPO that make its teachers."""
