from audiovq_player.cli import main

if __name__ == "__main__":
    main()
