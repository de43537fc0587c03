"""The stages of a case study, one file each; `study.graph` has their order."""
