if [ -f built.txt ]; then
  read -r number < built.txt
  echo "Hello from plain, build $number, ${PLAIN_COLOR:-no color}"
else
  echo "Hello from plain, never built, ${PLAIN_COLOR:-no color}"
fi
