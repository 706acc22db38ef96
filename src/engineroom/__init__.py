"""Engine Room's host tool: from the catalog to rendered files, images and running stacks."""
