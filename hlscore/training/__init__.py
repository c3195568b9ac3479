"""Plans on live models: wrapping for PEFT, optimizer groups, merging. Needs PEFT."""
