"""Redis (and Valkey): every step that moves a message is one script, see the `.lua` files beside this one."""
