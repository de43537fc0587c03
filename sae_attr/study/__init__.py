"""Runs: settings, inputs and stages of attributions and case studies, each stage a file of
`stages/`; what a notebook would call to do a whole study.
"""
