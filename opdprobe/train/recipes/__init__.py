"""The paper's recipes (§5, App. C.3): a cold start; which prompts to train on."""
