"""Many models over several data sets, devices and machines."""
