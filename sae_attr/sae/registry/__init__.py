"""SAEs by name: `RELEASE/ID` of SAELens' registry -> hub path, format, model and site."""
