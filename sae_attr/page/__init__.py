from sae_attr.page.contents import *
def render_page(report): return "<p>stub</p>"
