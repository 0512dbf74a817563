"""What the package is measured with, and the small real models it is measured on."""
