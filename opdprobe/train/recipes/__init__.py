"""The paper's recipes (§5, App. C.3): a cold start, and the choice of prompts."""
