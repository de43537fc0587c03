"""The stages of an attribution and of a case study, a file each with its version."""
