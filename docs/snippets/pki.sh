# --8<-- [start:authority]
fedweave pki init                                 # makes pki/, on the coordinator's machine
fedweave pki token zurich --out zurich.token      # good once, for an hour
# --8<-- [end:authority]
# --8<-- [start:client]
fedweave pki enrol --workdir zurich --token-file zurich.token --pki pki
# --8<-- [end:client]
# --8<-- [start:later]
fedweave pki list
fedweave pki revoke zurich
# --8<-- [end:later]
fedweave pki list --json | grep -q '"state": "revoked"'
