"""The CSI driver `csi.headrace.io`: the holder, the node service, and the mount command, its client."""
