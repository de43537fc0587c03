"""Language models: one config, one block, one segmented forward for every decoder
family.
"""
