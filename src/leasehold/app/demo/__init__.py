"""The demonstration, made only of real parts.

``image``     builds a small OCI image from this machine's static busybox
``registry``  runs Debian's docker-registry and pushes the image to it
``flow``      starts a provider, deploys, asks the workload, and prints the timeline
"""
