from outrider_sidecar.app import main

main()
