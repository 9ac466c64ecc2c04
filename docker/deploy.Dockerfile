# A model as a service of its own, without an instance.
#
#   docker build -f docker/deploy.Dockerfile -t supervisely/hrda-deploy:0.1.0 .
#   docker run --gpus all -p 127.0.0.1:8000:8000 -v $PWD:/models supervisely/hrda-deploy:0.1.0 --model /models/model.pth
FROM supervisely/hrda:0.1.0

WORKDIR /app
COPY LICENSE ./
COPY common ./common
COPY serve ./serve

EXPOSE 8000

# The container has an address of its own, and whoever runs it chooses by -p who reaches that.
ENTRYPOINT ["python", "-m", "serve", "deploy", "--host", "0.0.0.0"]
