"""The boot lab: images timed, checked and diagnosed in QEMU."""
