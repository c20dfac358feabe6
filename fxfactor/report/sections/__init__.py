"""The sections of the page, each a piece of HTML."""
