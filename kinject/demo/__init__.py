"""A page in the browser that shows what plugins do to a host's answers: `kinject demo`.

`demo` answers one sentence under the plugins chosen, `server` gives it to the page in `page/`. Everything comes from
this machine: the page names no other.
"""
