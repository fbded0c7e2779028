"""The page that browsers show: modules as they are, without a build step."""
