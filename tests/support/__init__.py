"""What the tests share: images, programs started as processes, disks, a browser."""
