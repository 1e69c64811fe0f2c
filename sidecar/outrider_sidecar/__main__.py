"""`python -m outrider_sidecar` is `outrider-sidecar`."""

from outrider_sidecar.app import main

if __name__ == "__main__":
    main()
