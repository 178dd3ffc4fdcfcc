"""Model references, files and what they hold. Everything here may be imported in the kernel."""
