"""Physical quantities of weather: their names in the CF conventions, units, ranges, and the names that data give them."""
