"""One client of OpenAI-compatible servers, for judges and for samples: requests that end,
attempts, budgets, and the decision to stop.
"""
